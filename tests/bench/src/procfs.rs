//! What `/proc` says about the server under test: CPU of its process tree, memory, and drops at UDP sockets.

use std::{fs, io, time::Duration};

use crate::sys;

/// Memory of a process tree, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident set: every page of the processes that is in memory.
    pub rss: u64,
    /// Of it, anonymous pages: heap and stacks, without the binary and its libraries.
    pub heap: u64,
}

/// What one process occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Resident set in bytes.
    pub rss: u64,
    /// Open descriptors.
    pub descriptors: usize,
    pub threads: usize,
}

/// Memory, descriptors and threads of one process.
///
/// # Errors
///
/// When the process is gone.
pub(crate) fn footprint(pid: u32) -> io::Result<Footprint> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Footprint {
        rss: kib(&status, "VmRSS:") * 1024,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
    })
}

/// The process and its descendants, parents first.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&pid) = tree.get(next) {
        tree.extend(
            parents
                .iter()
                .filter(|(_, parent)| *parent == pid)
                .map(|(child, _)| *child),
        );
        next += 1;
    }
    tree
}

/// CPU time that the process tree has used so far, threads that ended included.
///
/// # Errors
///
/// When the root process is gone.
pub(crate) fn cpu(root: u32) -> io::Result<Duration> {
    let mut total = sys::process_cpu(root)?;
    for pid in tree(root).into_iter().skip(1) {
        // A worker that ended between the two calls takes its time with it; the gateway's own never does.
        total += sys::process_cpu(pid).unwrap_or_default();
    }
    Ok(total)
}

/// Memory of the process tree.
///
/// # Errors
///
/// When the root process is gone or `/proc` does not show its maps.
pub(crate) fn memory(root: u32) -> io::Result<Memory> {
    let mut total = Memory::default();
    for pid in tree(root) {
        let text = match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(text) => text,
            Err(error) if pid == root => return Err(error),
            Err(_) => continue,
        };
        total.rss += kib(&text, "Rss:") * 1024;
        total.heap += kib(&text, "Anonymous:") * 1024;
    }
    Ok(total)
}

/// Datagrams dropped for want of room at the IPv4 UDP sockets with the given local ports.
pub(crate) fn udp_drops(ports: &[u16]) -> u64 {
    let text = fs::read_to_string("/proc/net/udp").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(socket_line)
        .filter(|(port, _)| ports.contains(port))
        .map(|(_, drops)| drops)
        .sum()
}

/// Time that all cores together were busy since boot, in ticks of 10 ms.
pub(crate) fn machine_busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = fields
        .iter()
        .take(8)
        .enumerate()
        .filter(|(i, _)| *i != 3 && *i != 4)
        .map(|(_, ticks)| ticks)
        .sum();
    Duration::from_millis(busy * 10)
}

/// Model name of the processor, and the kernel's release.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown processor");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, {}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}

/// The parent in `/proc/PID/stat`: the second field after the name, which stands in parentheses and may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default();
    line.split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Local port and drops of a line of `/proc/net/udp`.
fn socket_line(line: &str) -> Option<(u16, u64)> {
    let mut fields = line.split_whitespace();
    let port = u16::from_str_radix(fields.nth(1)?.rsplit_once(':')?.1, 16).ok()?;
    Some((port, fields.last()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_a_name_with_parentheses() {
        assert_eq!(parent("42 (a) b) (c)) S 7 42 42 0"), Some(7));
        assert_eq!(parent("garbage"), None);
    }

    #[test]
    fn a_line_of_the_socket_table_gives_port_and_drops() {
        let line =
            "  512: 0100007F:1FFD 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2312 2 0 9";
        assert_eq!(socket_line(line), Some((8189, 9)));
        assert_eq!(socket_line(""), None);
    }

    #[test]
    fn this_process_has_memory_and_belongs_to_its_own_tree() {
        let own = std::process::id();
        assert!(tree(own).contains(&own));
        let memory = memory(own).unwrap();
        assert!(memory.heap > 0 && memory.rss > memory.heap);
        assert!(cpu(own).is_ok());
        let footprint = footprint(own).unwrap();
        assert!(footprint.rss > 0 && footprint.descriptors >= 3 && footprint.threads >= 1);
        assert!(machine_busy() > Duration::ZERO);
    }
}
