package commandline

import "fmt"

// The exit codes of commands. A signal adds 128 to its number; see SignalError.
const (
	ExitProblems    = 1 // it failed, or what it checked has problems
	ExitUsage       = 2 // it could not begin, because the command line is wrong
	ExitDeadLetters = 3 // a run delivered everything except what it dead-lettered
)

// ExitError ends the process with a code. Without an Err nothing is printed.
type ExitError struct {
	Code int
	Err  error
}

func (e ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e ExitError) Unwrap() error { return e.Err }

// UsageError is err as the error of a command line that is wrong.
func UsageError(err error) error { return ExitError{Code: ExitUsage, Err: err} }

// Usagef is a UsageError with the text that fmt.Errorf makes.
func Usagef(format string, args ...any) error { return UsageError(fmt.Errorf(format, args...)) }

// Problems ends a command whose problems are printed already.
func Problems() error { return ExitError{Code: ExitProblems} }
