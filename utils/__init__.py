"""What would serve any project that trains networks: nothing here names a config key or a concept of this one."""
