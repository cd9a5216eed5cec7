"""Files of adapters: fetched from their source, checked, kept on the node by the hash of their content."""
