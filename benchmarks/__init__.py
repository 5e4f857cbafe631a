"""Questions asked of the job, one file each; see README.md beside this file."""
