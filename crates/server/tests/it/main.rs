//! The server from the outside, over a real socket.

mod access;
mod admin;
mod again;
mod chat;
mod completions;
mod disconnect;
mod embeddings;
mod errors;
mod exactness;
mod limits;
mod messages;
mod responses;
mod script;
mod shapes;
mod shutdown;
mod support;
mod thoughts;
mod told;
mod tools;
