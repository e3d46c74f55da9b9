//! Typed reading and writing of records.

use viaduct_model::{Invalid, Record};

use crate::store::{Entry, LeaseId, SharedStore, StoreError, Version};

/// A record with its name and version.
#[derive(Debug, Clone, PartialEq)]
pub struct Named<T> {
    /// The record's name.
    pub name: String,
    /// The version that was read.
    pub version: Version,
    /// The record.
    pub record: T,
}

/// Decodes and validates an entry.
///
/// # Errors
/// Names the record, and what is wrong with it.
pub fn decode<T: Record>(entry: &Entry) -> Result<Named<T>, Invalid> {
    let unreadable = |e: String| {
        let shown: String = String::from_utf8_lossy(&entry.value)
            .chars()
            .take(80)
            .collect();
        Invalid::new(format!("{} {:?}", T::KIND, entry.name), "record", shown, e)
    };
    let record: T = serde_json::from_slice(&entry.value).map_err(|e| unreadable(e.to_string()))?;
    record.validate(&entry.name)?;
    Ok(Named {
        name: entry.name.clone(),
        version: entry.version.clone(),
        record,
    })
}

/// Encodes a record as the stores hold it.
///
/// # Errors
/// When the record is not valid under that name.
pub fn encode<T: Record>(name: &str, record: &T) -> Result<Vec<u8>, Invalid> {
    record.validate(name)?;
    serde_json::to_vec(record)
        .map_err(|e| Invalid::new(format!("{} {name:?}", T::KIND), "record", "", e.to_string()))
}

/// Typed access to a store.
#[derive(Debug, Clone)]
pub struct Records {
    store: SharedStore,
}

impl Records {
    /// Typed access to `store`.
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    /// The store underneath.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Reads one record.
    ///
    /// # Errors
    /// What the store says, or what is wrong with the record.
    pub async fn get<T: Record>(&self, name: &str) -> Result<Option<Named<T>>, StoreError> {
        let entry = self.store.get(T::KIND, name).await?;
        Ok(entry.as_ref().map(decode).transpose()?)
    }

    /// Reads all records of a kind; those that cannot be decoded come apart.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list<T: Record>(&self) -> Result<(Vec<Named<T>>, Vec<Invalid>), StoreError> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for entry in &self.store.list(T::KIND).await?.entries {
            match decode(entry) {
                Ok(named) => good.push(named),
                Err(invalid) => bad.push(invalid),
            }
        }
        Ok((good, bad))
    }

    /// Creates a record if there is none of that name.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], or what the store says.
    pub async fn create<T: Record>(
        &self,
        name: &str,
        record: &T,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        self.store
            .create(T::KIND, name, &encode(name, record)?, lease)
            .await
    }

    /// Replaces a record if it still has the expected version.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], or what the store says.
    pub async fn update<T: Record>(
        &self,
        name: &str,
        record: &T,
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        self.store
            .update(T::KIND, name, &encode(name, record)?, expected, lease)
            .await
    }

    /// Deletes a record if it still has the expected version.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], or what the store says.
    pub async fn delete<T: Record>(
        &self,
        name: &str,
        expected: &Version,
    ) -> Result<(), StoreError> {
        self.store.delete(T::KIND, name, expected).await
    }
}
