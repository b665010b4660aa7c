//! Finds what a request's path names below the root: a file and its neighbours, or the listing of a
//! directory.
//!
//! A path that ends with a slash names a directory: its index file is sent, or its listing if the
//! config allows one. Any other path is tried with each ending of `try` in turn.

use std::fs::File;

use super::{
    cache::{Resource, Variant},
    directory::{Directory, Opened, Stamp},
    encoding::{AcceptedCodings, Coding},
    failure::FileFailure,
    listing,
    media_type::media_type,
    path::FilePath,
    representation::{FieldsSpec, Representation},
};
use crate::config::FilesConfig;

/// The key of the 404 page. No request path is empty.
pub(super) const NOT_FOUND_KEY: &str = "";

/// A file's name below the root, with the values of [`Opened::Regular`].
type NamedFile = (Vec<u8>, Option<File>, Stamp);

/// One look-up.
#[derive(Clone, Copy)]
pub(super) struct LookUp<'a> {
    pub(super) config: &'a FilesConfig,
    pub(super) key: &'a str,
    pub(super) accepted: AcceptedCodings,
    pub(super) wall_s: i64,
    /// Whether to fail if a neighbour cannot be opened for lack of descriptors.
    pub(super) needs_neighbours: bool,
}

impl LookUp<'_> {
    /// Finds the file that the key names and its neighbours, and loads the variant that the request
    /// accepts. At most two files are open at a time.
    pub(super) fn run(
        &self,
        root: &Directory,
        last_known: Option<&Resource>,
    ) -> Result<Resource, FileFailure> {
        let Self { config, key, accepted, wall_s, needs_neighbours } = *self;
        let is_error_page = key == NOT_FOUND_KEY;
        let (name, file, stamp) = match &config.not_found {
            Some(page) if is_error_page => {
                open_file(root, page.trim_start_matches('/').as_bytes().to_vec())?
            }
            _ => {
                let path = FilePath::parse(key)?;
                match self.open_requested(root, &path) {
                    Err(FileFailure::NotFound) if path.is_directory && config.listing => {
                        return self.list(root, &path);
                    }
                    outcome => outcome?,
                }
            }
        };
        let is_negotiated = config.precompressed && !is_error_page && !is_coded_name(&name);
        let mut found = vec![(Coding::Identity, stamp)];
        let mut chosen = (Coding::Identity, file);
        if is_negotiated {
            for coding in Coding::NEIGHBOURS {
                let (file, neighbour) = match open_neighbour(root, &name, coding, &stamp) {
                    Ok(Some(opened)) => opened,
                    Err(failure) if needs_neighbours => return Err(failure),
                    Ok(None) | Err(_) => continue,
                };
                found.push((coding, neighbour));
                if accepted.choose(|coding| found.iter().any(|(own, _)| *own == coding)) == coding {
                    chosen = (coding, file);
                }
            }
        }
        let spec = FieldsSpec {
            media_type: &media_type(&name, &config.types),
            cache_control: config.cache_control.as_deref(),
            is_negotiated,
            is_error_page,
        };
        let (chosen, mut file) = chosen;
        let mut variants = Vec::with_capacity(found.len());
        for (coding, stamp) in found {
            let known = last_known.and_then(|known| known.unchanged(coding, &stamp));
            let loaded = match known {
                Some(known) => Some(known.clone()),
                None if coding != chosen => None,
                None => {
                    let file = file.take().ok_or(FileFailure::Leased)?;
                    Some(Representation::load(file, stamp, coding, &spec, wall_s)?)
                }
            };
            variants.push(Variant { coding, stamp, loaded });
        }
        Ok(Resource::new(variants))
    }

    fn open_requested(&self, root: &Directory, path: &FilePath) -> Result<NamedFile, FileFailure> {
        if path.is_directory {
            for index in &self.config.index {
                match open_file(root, path.join(index)) {
                    Err(FileFailure::NotFound | FileFailure::IsDirectory) => {}
                    outcome => return outcome,
                }
            }
            return Err(FileFailure::NotFound);
        }
        for ending in &self.config.tries.endings {
            match open_file(root, [&path.relative, ending.as_bytes()].concat()) {
                Err(FileFailure::NotFound) => {}
                // Only the path itself is redirected to the directory.
                Err(FileFailure::IsDirectory) if !ending.is_empty() => {}
                outcome => return outcome,
            }
        }
        Err(FileFailure::NotFound)
    }

    fn list(&self, root: &Directory, path: &FilePath) -> Result<Resource, FileFailure> {
        let page = listing::page(&path.relative, &root.list(&path.relative)?);
        let spec = FieldsSpec {
            media_type: "text/html; charset=utf-8",
            cache_control: self.config.cache_control.as_deref(),
            is_negotiated: false,
            is_error_page: false,
        };
        let stamp = Stamp::of_listing(page.len() as u64);
        let loaded = Some(Representation::of_page(page, &spec, self.wall_s));
        Ok(Resource::new(vec![Variant { coding: Coding::Identity, stamp, loaded }]))
    }
}

fn open_file(root: &Directory, name: Vec<u8>) -> Result<NamedFile, FileFailure> {
    match root.open_file(&name)? {
        Opened::Regular(file, stamp) => Ok((name, file, stamp)),
        Opened::Directory => Err(FileFailure::IsDirectory),
    }
}

/// Opens the neighbour in this coding if it may be sent for the file. A neighbour that cannot be
/// opened counts as missing, unless descriptors or memory ran out.
fn open_neighbour(
    root: &Directory,
    name: &[u8],
    coding: Coding,
    original: &Stamp,
) -> Result<Option<(Option<File>, Stamp)>, FileFailure> {
    match root.open_file(&[name, coding.suffix().as_bytes()].concat()) {
        Ok(Opened::Regular(file, stamp)) if stamp.modified.0 >= original.modified.0 => {
            Ok(Some((file, stamp)))
        }
        Err(FileFailure::Exhausted) => Err(FileFailure::Exhausted),
        _ => Ok(None),
    }
}

/// Whether the file's own name says that it is compressed: such a file has no neighbours.
fn is_coded_name(name: &[u8]) -> bool {
    Coding::NEIGHBOURS.iter().any(|coding| name.ends_with(coding.suffix().as_bytes()))
}
