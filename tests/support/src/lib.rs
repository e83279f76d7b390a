//! Test peers for Millstream.
