use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file that is replaced as a whole: until then, and if that never comes to it, it stays what it was.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    /// Written first and then renamed. `None`: what is there is no regular file (a pipe, a terminal), and is written itself.
    beside: Option<PathBuf>,
}

impl WholeFile {
    /// Finds out whether `path` could be written, and leaves it alone.
    pub fn at(path: &Path) -> io::Result<Self> {
        // What a symbolic link leads to is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&path) {
            Ok(found) if !found.is_file() => return Ok(Self { path, beside: None }),
            Ok(_) => drop(File::options().append(true).open(&path)?),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside = path.with_file_name(name);
        File::create(&beside)?;
        fs::remove_file(&beside)?;
        Ok(Self { path, beside: Some(beside) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        let Some(beside) = &self.beside else {
            return File::options().write(true).open(&self.path)?.write_all(content);
        };
        let written = File::create(beside).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // Half of it is of no use.
            let _ = fs::remove_file(beside);
            return Err(error);
        }
        fs::rename(beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("a.json"), directory.path().join("link"));
        fs::write(&path, "before").unwrap();
        symlink(&path, &link).unwrap();
        let file = WholeFile::at(&link).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        file.write(b"after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(WholeFile::at(&directory.path().join("no/such")).is_err());
    }

    #[test]
    fn what_is_no_regular_file_is_written_itself() {
        WholeFile::at(Path::new("/dev/null")).unwrap().write(b"x").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
