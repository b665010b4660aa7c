//! The way back from control to the asker of a question.

use std::fmt;

use super::change_error::ChangeError;

type Give<T> = Box<dyn FnOnce(Result<T, ChangeError>) + Send>;

/// Answers one question, once. An answer that is dropped says that the server has ended, so that
/// no asker waits for ever.
#[must_use = "the asker waits for it"]
pub(crate) struct Answer<T>(Option<Give<T>>);

impl<T> Answer<T> {
    /// Calls this function with the outcome, on control's thread: it must not wait.
    pub(crate) fn new(give: impl FnOnce(Result<T, ChangeError>) + Send + 'static) -> Self {
        Self(Some(Box::new(give)))
    }

    /// Gives the outcome.
    pub(crate) fn give(mut self, outcome: Result<T, ChangeError>) {
        self.give_once(outcome);
    }

    fn give_once(&mut self, outcome: Result<T, ChangeError>) {
        if let Some(give) = self.0.take() {
            give(outcome);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.give_once(Err(ChangeError::Ended));
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_once_also_when_it_is_dropped() {
        let (sender, given) = crossbeam_channel::unbounded();
        let answer = || {
            let sender = sender.clone();
            Answer::new(move |outcome| sender.send(outcome).unwrap())
        };
        answer().give(Ok(7));
        drop(answer());
        assert_eq!(given.try_iter().collect::<Vec<_>>(), [Ok(7), Err(ChangeError::Ended)]);
    }
}
