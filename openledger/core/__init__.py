"""What everything else stands on: ids, money, hashing, signing, errors, time. No ray, torch or web framework."""
