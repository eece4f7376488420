"""The report: one page a project and an index, from what stands in build/, the store and the run logs."""
