//! What a hostile peer costs: memory by a counting allocator, forged records, altered datagrams in every state.

mod forgeries;
mod heap;
mod memory;
mod mutations;
mod world;
