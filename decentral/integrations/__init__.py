"""Adapters to other people's training loops, a module for each. Nothing else imports their libraries."""
