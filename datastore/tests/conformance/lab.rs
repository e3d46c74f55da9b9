//! A store under test, and the lists of the cases that it is put to.

use std::sync::Arc;

use viaduct_datastore::Store;

/// A store under test. `open` gives another, independent client of the same
/// store each time, as another process would have.
pub trait Lab: Send + Sync + 'static {
    /// Another client.
    fn open(&self) -> impl Future<Output = Arc<dyn Store>> + Send;
}

/// Runs every generic case against a lab.
#[macro_export]
macro_rules! conformance {
    ($lab:expr, $module:ident; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let lab = $lab.await;
                $crate::$module::$case(&lab).await;
            }
        )*
    };
}

/// The cases that need neither leases nor a store that takes any bytes: all stores have
/// these.
#[macro_export]
macro_rules! common_cases {
    ($lab:expr) => {
        $crate::conformance! { $lab, cases;
            create_gives_a_record_once_only,
            update_needs_the_version_that_was_read,
            delete_needs_the_version_that_was_read,
            names_that_leave_their_kind_are_refused,
            kinds_do_not_see_each_other,
            two_writers_on_one_key_lose_no_update,
            a_watch_continues_a_list_without_a_gap,
            no_change_is_missed_under_ten_thousand_concurrent_writes,
            a_follower_is_told_everything_first_and_stops_when_dropped,
            one_leader_at_a_time_and_resigning_on_drop,
            connectivity_says_connected_once_something_worked,
        }
    };
}

/// The names of all cases, for stores that hold any bytes and have liveness leases.
#[macro_export]
macro_rules! all_cases {
    ($lab:expr) => {
        $crate::common_cases!($lab);
        $crate::conformance! { $lab, cases;
            any_bytes_come_back_as_they_were,
            a_lease_that_is_kept_alive_keeps_its_record,
            a_lease_that_runs_out_takes_its_record_away,
            a_revoked_lease_takes_its_record_away,
            a_record_put_on_another_lease_outlives_the_first,
        }
        $crate::conformance! { $lab, cases_liveness;
            a_held_record_lives_and_is_released,
            a_held_record_is_taken_over_by_its_own_owner_at_once,
            a_record_held_by_somebody_alive_is_refused_by_name,
            a_record_whose_owner_died_is_taken_over,
            a_held_record_that_was_deleted_is_written_again,
            a_holder_comes_back_after_its_lease_was_lost,
        }
    };
}
