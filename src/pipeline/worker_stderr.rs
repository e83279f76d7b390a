//! What the libraries of a worker write to standard error: logged within bounds, and read for a missing library.

use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::ChildStderr;
use tracing::debug;

use millstream_worker_runtime::wire;

/// Maximum number of lines of a worker that are logged, and maximum bytes of each.
const MAX_LOGGED_STDERR_LINES: usize = 200;
const MAX_LOGGED_STDERR_LINE_BYTES: u64 = 500;

/// Logs what the libraries of a worker write to standard error, within bounds.
pub(super) async fn log_stderr(stderr: ChildStderr, id: Option<u32>, missing_library: Arc<OnceLock<String>>) {
    let mut reader = BufReader::new(stderr);
    for _ in 0..MAX_LOGGED_STDERR_LINES {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LOGGED_STDERR_LINE_BYTES);
        match limited.read_until(b'\n', &mut line).await {
            Ok(1..) => {
                let text = wire::sanitize_worker_text(&String::from_utf8_lossy(&line));
                if let Some(library) = parse_missing_library(&text) {
                    let _ = missing_library.set(library.to_owned());
                }
                debug!(worker = id, text, "pipeline or demuxer worker wrote to standard error");
            }
            Ok(0) | Err(_) => return,
        }
    }
    // If nobody read the pipe, the worker would block on it.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

/// Returns the library that the dynamic linker (ld.so(8)) did not find, if this line of its output says so.
fn parse_missing_library(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("error while loading shared libraries: ")?;
    rest.split(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_read_from_the_output_of_the_dynamic_linker() {
        let line = "millstream-worker: error while loading shared libraries: libgstapp-1.0.so.0: cannot open shared \
                    object file: No such file or directory";
        assert_eq!(parse_missing_library(line), Some("libgstapp-1.0.so.0"));
        assert_eq!(parse_missing_library("libgstapp-1.0.so.0: something else"), None);
    }
}
