//! Files that appear whole or not at all.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// How the names of temporary files begin. One stays behind only when its process is killed; it can be deleted.
pub const TEMPORARY_PREFIX: &str = ".lapidary-";

/// Writes a file: a temporary one beside it, which takes its place by a rename when all is on the disk. Whatever
/// happens meanwhile, at `path` lies the old file or the whole new one.
///
/// Something else than a file at `path` (a folder, a device, a pipe) is an error and stays as it is; a symbolic link is
/// replaced, not followed. The new file may be read by whom the umask lets.
pub fn replace_file<T, E: From<io::Error>>(path: &Path, write: impl FnOnce(&mut File) -> Result<T, E>) -> Result<T, E> {
    replace(path, 0o666, write)
}

/// [`replace_file`] for a program: may be run by whom the umask lets.
pub fn replace_program<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    replace(path, 0o777, write)
}

fn replace<T, E: From<io::Error>>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if let Ok(found) = std::fs::metadata(path)
        && !found.is_file()
    {
        let what = if found.is_dir() { "a folder" } else { "a device or a pipe" };
        let message = std::format!("wanted a file or a new name, found {what}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message).into());
    }
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(doing("create a temporary file beside it"))?;
    let result = write(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(doing("sync"))?;
    temporary.persist(path).map_err(|error| error.error).map_err(doing("rename into place"))?;
    // So that the name is on the disk too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(doing("sync its folder"))?;
    Ok(result)
}

fn doing<E: From<io::Error>>(doing: &'static str) -> impl FnOnce(io::Error) -> E {
    move |source| io::Error::new(source.kind(), std::format!("{doing}: {source}")).into()
}
