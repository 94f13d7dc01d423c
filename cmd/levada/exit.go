package main

import (
	"fmt"

	"github.com/levada-io/levada/internal/commandline"
)

// The exit codes of commands that check something.
const (
	exitProblems = commandline.ExitProblems // it was checked, and there are problems
	exitUsage    = commandline.ExitUsage    // it could not be checked, because the command line is wrong
)

// exitError ends the process with a code. Without an err there is nothing left to say.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// ExitCode is for commandline.Execute.
func (e exitError) ExitCode() int { return e.code }
