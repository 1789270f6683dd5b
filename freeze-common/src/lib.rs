//! What crosses from the kernel programs to the agent: fixed layouts, no policy.
#![no_std]
