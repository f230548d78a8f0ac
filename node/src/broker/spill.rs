//! Pages of blocks that memory has no room for: the newest checkpoint has them, and they are read again when they are
//! needed.
//!
//! What is decided does not depend on where a page is: only how long it takes does.

use std::{cell::OnceCell, fmt, sync::Arc};

use skein_proto::ids::{Offset, QueueId};

use super::{Block, PageRecord, packed::Packed};

/// Where pages are read again.
pub trait SavedPages: fmt::Debug + Send + Sync {
    /// The page as it was last saved.
    ///
    /// # Panics
    /// When it cannot be read. What the queue keeps is not known then, and the node must not go on.
    fn read(&self, queue: QueueId, page: u64) -> PageRecord;
}

/// How much memory a shard's pages may take, and where the others are read again.
#[derive(Debug, Clone)]
pub struct Spill {
    /// Where to.
    pub pages: Arc<dyn SavedPages>,
    /// The memory of the rest.
    pub keep_bytes: u64,
}

/// The rows of a page, which are not in memory unless somebody has needed them since.
#[derive(Debug)]
pub(super) struct Spilled {
    pages: Arc<dyn SavedPages>,
    queue: QueueId,
    page: u64,
    /// The page may have been saved with others before it.
    first: Offset,
    row_count: u16,
    rows: OnceCell<Packed>,
}

impl Spilled {
    pub(super) fn new(
        pages: Arc<dyn SavedPages>,
        queue: QueueId,
        page: u64,
        first: Offset,
        row_count: usize,
    ) -> Self {
        let row_count = u16::try_from(row_count).expect("a page has far fewer blocks");
        Self { pages, queue, page, first, row_count, rows: OnceCell::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.row_count.into()
    }

    pub(super) fn rows(&self) -> &Packed {
        self.rows.get_or_init(|| Packed::new(&self.read()))
    }

    /// All rows, unless they are in memory. They do not stay there.
    pub(super) fn read_past(&self) -> Option<Vec<Block>> {
        self.rows.get().is_none().then(|| self.read())
    }

    fn read(&self) -> Vec<Block> {
        let Self { queue, page, .. } = *self;
        let mut blocks = self.pages.read(queue, page).blocks;
        blocks.retain(|block| block.first >= self.first);
        let found = (blocks.len(), blocks.first().map(|block| block.first));
        assert_eq!(
            found,
            (self.len(), Some(self.first)),
            "page {page} of queue {queue} is not in the checkpoint as it was saved"
        );
        blocks
    }

    /// What it takes besides itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.rows.get().map_or(0, Packed::heap_bytes)
    }
}
