"""Cases that people brought, each a test; README.md says which case is which test."""
