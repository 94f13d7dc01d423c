package faults

import (
	"os"
	"testing"
)

// skipUntil skips a test of something that does not hold yet, unless LEDGER_ALL asks for it.
func skipUntil(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("LEDGER_ALL") == "" {
		t.Skipf("skipped until %s; LEDGER_ALL=1 runs it", what)
	}
}
