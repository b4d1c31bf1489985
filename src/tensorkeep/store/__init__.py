"""The promises: open, push, pull, load, verify, tag, diff, gc, rebuild. Everything below moves bytes or decides; this keeps word."""
