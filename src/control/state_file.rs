//! Writes the state file: whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// First lines of the file.
const STATE_FILE_HEADER: &str = "# What was set through the API of Millstream. The gateway rewrites this file at each change: edit it only while the\n\
                                 # gateway is stopped. It may hold passwords.\n\n";

/// Only the owner may read the file: it may hold passwords of cameras.
const STATE_FILE_MODE: u32 = 0o600;

/// Replaces the file at `path`. After a failure, or a crash at any time, it has its old content.
pub(super) fn replace_state_file(path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary_path(path);
    // Of an earlier run that crashed. Its mode may be another one, and it may be a link.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new_file(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    // The new name is durable once the folder is. Not every file system can do that.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn write_new_file(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(STATE_FILE_MODE).open(path)?;
    file.write_all(STATE_FILE_HEADER.as_bytes())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_is_replaced_as_a_whole_and_read_by_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("millstream-state-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("state.toml");
        for text in ["a = 1\n", "b = 2\n"] {
            // As a crash leaves it, readable by everybody.
            fs::write(temporary_path(&path), "half a fi").expect("written");
            replace_state_file(&path, text).expect("written");
            let read = fs::read_to_string(&path).expect("read");
            assert_eq!(read, format!("{STATE_FILE_HEADER}{text}"));
            assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
            assert!(!temporary_path(&path).exists());
        }
        // Nothing can be written over a folder, and nothing is left behind.
        fs::create_dir_all(folder.join("taken")).expect("a folder");
        replace_state_file(&folder.join("taken"), "a = 1\n").expect_err("a folder");
        assert!(!temporary_path(&folder.join("taken")).exists());
        fs::remove_dir_all(&folder).expect("removed");
    }
}
