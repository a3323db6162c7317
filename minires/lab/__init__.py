"""The lab: a page on which the network runs in a reader's browser, and what Python gives it."""
