"""Model families: one file each, with its Config and its Model; this directory is the registry."""
