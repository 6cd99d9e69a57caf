//! Time as the card counts it.

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use super::{Gpu, words};

impl Gpu {
    /// Microseconds that the card takes for what `work` enqueues.
    pub(crate) fn time(&self, work: impl FnOnce()) -> Result<f64, Error> {
        self.wait()?;
        let failed = |e: result::DriverError| self.lost(words(e));
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed);
        let (start, end) = (event()?, event()?);
        // SAFETY: events and stream are alive.
        unsafe { result::event::record(start, self.stream) }.map_err(failed)?;
        work();
        self.flush();
        // SAFETY: as above.
        unsafe { result::event::record(end, self.stream) }.map_err(failed)?;
        self.wait()?;
        // SAFETY: both events were recorded and have been waited for; each is let go of once.
        let milliseconds = unsafe {
            let elapsed = result::event::elapsed(start, end);
            let _ = (result::event::destroy(start), result::event::destroy(end));
            elapsed
        };
        Ok(f64::from(milliseconds.map_err(failed)?) * 1e3)
    }
}
