"""What each verb does, from paths and settings to files; `cli/` only reads the command line."""
