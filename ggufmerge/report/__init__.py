"""What is told about results: model cards and file names by the conventions of the field."""
