"""What every stage stands on: errors, seeded generators, atomic files. Imports nothing of vshard."""
