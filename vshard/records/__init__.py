"""One record: its name, PNG coding, metadata, directory form, and how it is generated."""
