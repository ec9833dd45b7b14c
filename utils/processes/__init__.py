"""The processes of a job: start, supervise, agree, read ahead in workers, guard the update, stop."""
