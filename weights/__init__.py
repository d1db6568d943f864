"""Released weights, one folder each in the Hub's layout, and the manifest of their sha256 sums."""
