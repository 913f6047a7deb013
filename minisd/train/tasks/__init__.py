"""What can be trained, one file each; a task reads like its paper's method section."""
