//! The files that a worker may open, by Landlock.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope, make_bitflags,
};

use super::devices::{device_classes, is_device_or_device_folder};
use crate::wire::PipelineJob;

/// Version of Landlock that the rules are written for; older kernels apply what they know. Version 6 has scopes.
const LANDLOCK_ABI: ABI = ABI::V6;

/// What libraries read whatever the pipeline: code, fonts, time zones, presets, certificates of authorities, facts about
/// the processors. No folder here holds secrets: `/etc/ssl/private` is not `/etc/ssl/certs`.
const ALWAYS_READABLE_PATHS: [&str; 30] = [
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/usr/share/fontconfig",
    "/etc/fonts",
    "/var/cache/fontconfig",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/usr/share/gstreamer-1.0",
    "/usr/share/glib-2.0/schemas",
    "/usr/share/locale",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];

/// What resolving host names needs.
const NAME_RESOLUTION_READ_PATHS: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
];

/// Devices that every program may read.
const READABLE_DEVICES: [&str; 3] = ["/dev/urandom", "/dev/random", "/dev/zero"];

/// Variables with lists of folders that code is loaded from.
const CODE_PATH_VARIABLES: [&str; 5] = [
    "LD_LIBRARY_PATH",
    "GST_PLUGIN_PATH",
    "GST_PLUGIN_PATH_1_0",
    "GST_PLUGIN_SYSTEM_PATH",
    "GST_PLUGIN_SYSTEM_PATH_1_0",
];

/// Variables with the file of the plugin registry.
const GST_REGISTRY_VARIABLES: [&str; 2] = ["GST_REGISTRY", "GST_REGISTRY_1_0"];

/// Whether a worker is kept from files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRestriction {
    Restricted,
    /// The kernel has no Landlock: permissions of files alone protect them.
    NotSupported,
}

/// Restricts this process to the files of a job, and signals and abstract Unix sockets to this process.
pub(super) fn restrict_file_access(job: &PipelineJob) -> io::Result<FileRestriction> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK_ABI)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | IoctlDev});
    let readable = readable_paths(job).into_iter().map(|path| (path, reads));
    let declared = job.files.iter().map(|path| {
        let access = if is_device_or_device_folder(path) {
            device
        } else {
            reads
        };
        (path.clone(), access)
    });
    let companions = device_classes(job).into_iter().flat_map(|class| class.companions);
    let companions = companions.map(|path| (PathBuf::from(path), device));
    let sink = (PathBuf::from("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile);
    let rules = readable.chain(declared).chain(companions).chain([sink]);
    let rules = rules.filter_map(path_rule);
    let restricted = ruleset
        .add_rules(rules.map(Ok::<_, landlock::RulesetError>))
        .and_then(RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    Ok(match restricted.ruleset {
        RulesetStatus::NotEnforced => FileRestriction::NotSupported,
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => FileRestriction::Restricted,
    })
}

/// Returns whether the kernel can keep a worker from files.
pub fn is_landlock_supported() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(ABI::V1)).is_ok()
}

/// Returns the rule for a path, following symbolic links; `None` if there is no such file.
fn path_rule((path, access): (PathBuf, BitFlags<AccessFs>)) -> Option<PathBeneath<PathFd>> {
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(LANDLOCK_ABI)
    };
    Some(PathBeneath::new(PathFd::new(path).ok()?, access))
}

/// Returns what a worker may read beside the files that its job declares.
fn readable_paths(job: &PipelineJob) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = ALWAYS_READABLE_PATHS
        .iter()
        .chain(&READABLE_DEVICES)
        .map(PathBuf::from)
        .collect();
    if job.network {
        paths.extend(NAME_RESOLUTION_READ_PATHS.iter().map(PathBuf::from));
    }
    let classes = device_classes(job).into_iter();
    paths.extend(classes.flat_map(|class| class.read_paths).map(PathBuf::from));
    paths.extend(std::env::current_exe());
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    paths.extend(library_folders(&mappings));
    paths.extend(code_and_cache_paths_from_environment(&|name| std::env::var_os(name)));
    paths
}

/// Returns the folders of the libraries that are mapped, given `/proc/self/maps`: GStreamer, its plugins and what these
/// need are installed together, also outside of `/usr`.
fn library_folders(mappings: &str) -> Vec<PathBuf> {
    let is_library = |path: &&Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".so") || name.contains(".so.")
    };
    let mapped = mappings
        .lines()
        .filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let libraries = mapped.map(Path::new).filter(is_library);
    let mut folders: Vec<PathBuf> = libraries.filter_map(|path| path.parent()).map(Path::to_owned).collect();
    folders.sort();
    folders.dedup();
    // A library directly below the root would name the root.
    folders.retain(|folder| folder.parent().is_some());
    folders
}

/// Returns the folders of code and caches that the environment names. The home folder itself is none of them.
fn code_and_cache_paths_from_environment(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for list in CODE_PATH_VARIABLES.iter().filter_map(|name| variable(name)) {
        paths.extend(std::env::split_paths(&list).filter(|path| path.is_absolute()));
    }
    paths.extend(
        GST_REGISTRY_VARIABLES
            .iter()
            .filter_map(|name| variable(name))
            .map(PathBuf::from),
    );
    let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
    if let Some(cache) = cache.or_else(|| Some(home.as_ref()?.join(".cache"))) {
        paths.extend([cache.join("gstreamer-1.0"), cache.join("fontconfig")]);
    }
    paths.extend(home.map(|home| home.join(".local/share/gstreamer-1.0/plugins")));
    // An empty variable would name the root.
    paths.retain(|path| path.parent().is_some());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_home_folder_nor_the_root_is_readable() {
        let paths = code_and_cache_paths_from_environment(&|name| {
            Some(match name {
                "HOME" => "/home/tv".into(),
                "GST_PLUGIN_PATH" => "/opt/plugins:/:relative".into(),
                "LD_LIBRARY_PATH" => "".into(),
                _ => return None,
            })
        });
        let wanted = [
            "/opt/plugins",
            "/home/tv/.cache/gstreamer-1.0",
            "/home/tv/.cache/fontconfig",
            "/home/tv/.local/share/gstreamer-1.0/plugins",
        ];
        assert_eq!(paths, wanted.map(PathBuf::from));
    }

    #[test]
    fn libraries_are_read_where_they_are_installed() {
        let mappings = "7f00-7f01 r-xp 00000000 fe:00 17  /opt/gstreamer/lib/libgstreamer-1.0.so.0.2800.0\n\
                        7f01-7f02 r--p 00000000 fe:00 18  /opt/gstreamer/lib/libgstbase-1.0.so.0\n\
                        7f02-7f03 r--p 00000000 fe:00 19  /usr/lib/locale/locale-archive\n\
                        7f03-7f04 rw-p 00000000 00:00 0   [heap]\n\
                        7f04-7f05 r-xp 00000000 fe:00 20  /srv/secrets/token\n\
                        7f05-7f06 r-xp 00000000 fe:00 21  /libodd.so\n\
                        7f06-7f07 rw-p 00000000 00:00 0\n";
        assert_eq!(library_folders(mappings), [PathBuf::from("/opt/gstreamer/lib")]);
        let own = std::fs::read_to_string("/proc/self/maps").expect("this process has mappings");
        assert!(!library_folders(&own).is_empty(), "{own}");
    }
}
