"""Commands about tokenised data."""
