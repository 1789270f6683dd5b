//! Shared parts of the tests: starting subjects, cycling them, comparing what /proc shows.
