"""A cluster YAML as the files that others deploy from: configuration → dictionary → YAML. Pure."""
