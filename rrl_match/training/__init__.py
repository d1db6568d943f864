"""Training of RRL-Net; nothing outside imports it. Needs the extra ``train``."""
