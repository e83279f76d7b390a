//! The version of the gateway, and the metrics of its process by the names that client libraries of Prometheus use.

use super::metrics_text::MetricsText;

/// What `/proc` says of this process. Each value is missing where its file cannot be read.
#[derive(Debug, Default, PartialEq)]
struct ProcessUsage {
    cpu_seconds: Option<f64>,
    /// Seconds since 1970.
    start_time: Option<f64>,
    thread_count: Option<u64>,
    virtual_memory_bytes: Option<u64>,
    resident_memory_bytes: Option<u64>,
    max_open_files: Option<u64>,
}

impl ProcessUsage {
    fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let usage = Self::parse(
            &read("/proc/self/stat"),
            &read("/proc/stat"),
            rustix::param::clock_ticks_per_second(),
            rustix::param::page_size() as u64,
        );
        Self {
            max_open_files: max_open_files(&read("/proc/self/limits")),
            ..usage
        }
    }

    /// Parses `/proc/PID/stat` and `/proc/stat` (proc(5)).
    fn parse(own: &str, system: &str, ticks_per_second: u64, page_bytes: u64) -> Self {
        // The name of the program, in parentheses, may contain anything.
        let fields: Vec<&str> = own
            .rsplit_once(')')
            .map_or_else(Vec::new, |(_, rest)| rest.split_ascii_whitespace().collect());
        // Fields are numbered from 1, and the state behind the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
        let boot_time = system
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, kernel)| seconds(user + kernel)),
            start_time: boot_time
                .zip(field(22))
                .map(|(boot, start)| boot as f64 + seconds(start)),
            thread_count: field(20),
            virtual_memory_bytes: field(23),
            resident_memory_bytes: field(24).map(|pages| pages * page_bytes),
            max_open_files: None,
        }
    }
}

/// Returns the soft limit of open files in the text of `/proc/PID/limits`; `None` if there is no limit.
fn max_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Writes the version and the metrics of the process.
pub(super) fn write_build_and_process_metrics(page: &mut MetricsText) {
    page.begin_metric_family(
        "millstream_build_info",
        "gauge",
        "1, with the version of the gateway and the platform that it was built for.",
    );
    let labels = format!(
        "version=\"{}\",os=\"{}\",arch=\"{}\"",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    page.add_sample_with_label_list(&labels, 1);
    let usage = ProcessUsage::read();
    if let Some(seconds) = usage.cpu_seconds {
        let help = "Processor time of this process in seconds, in user and kernel mode.";
        page.add_counter("process_cpu_seconds_total", help, seconds);
    }
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.add_gauge("process_open_fds", "Open file descriptors of this process.", files);
    for (name, help, value) in [
        (
            "process_max_fds",
            "Maximum number of open file descriptors.",
            usage.max_open_files,
        ),
        ("process_threads", "Threads of this process.", usage.thread_count),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of this process, in bytes.",
            usage.virtual_memory_bytes,
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory of this process, in bytes.",
            usage.resident_memory_bytes,
        ),
    ] {
        if let Some(value) = value {
            page.add_gauge(name, help, value);
        }
    }
    if let Some(start) = usage.start_time {
        let help = "Start of this process, in seconds since 1970.";
        page.add_gauge("process_start_time_seconds", help, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_described_by_what_the_kernel_says_of_it() {
        let own =
            "4242 (a ) b (c) S 1 4242 4242 0 -1 4194560 9 0 0 0 250 125 0 0 20 0 17 0 3000 1048576 512 184467 1 1 0";
        let expected = ProcessUsage {
            cpu_seconds: Some(3.75),
            start_time: Some(1_700_000_030.0),
            thread_count: Some(17),
            virtual_memory_bytes: Some(1_048_576),
            resident_memory_bytes: Some(512 * 4_096),
            max_open_files: None,
        };
        let system = "cpu  1 2 3\nbtime 1700000000\nprocesses 5\n";
        assert_eq!(ProcessUsage::parse(own, system, 100, 4_096), expected);
        assert_eq!(ProcessUsage::parse("", "", 100, 4_096), ProcessUsage::default());
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(max_open_files(limits), Some(1_024));
        assert_eq!(
            max_open_files("Max open files            unlimited            unlimited            files"),
            None
        );
    }
}
