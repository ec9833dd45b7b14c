"""What would serve any project that trains networks: nothing here knows a config key or a label map."""
