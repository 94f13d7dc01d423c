package records

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/source"
)

// Policy says what becomes of a record that cannot be read. The names are those of the manifest.
type Policy string

// The policies.
const (
	// DeadLetter keeps its raw bytes as a dead letter and goes on with the next record.
	DeadLetter Policy = "deadLetter"
	// Skip counts it, logs it and goes on with the next record.
	Skip Policy = "skip"
	// Fail ends the pipeline with an error.
	Fail Policy = "fail"
)

// ParseDelimiter reads the manifest's delimiter: one ASCII character, or \t as two characters for a tab. Empty is a comma.
func ParseDelimiter(text string) (byte, error) {
	switch {
	case text == "":
		return ',', nil
	case text == `\t`:
		return '\t', nil
	case len(text) == 1 && text[0] < 0x80 && text[0] != '"' && text[0] != '\n' && text[0] != '\r' && text[0] != 0:
		return text[0], nil
	}
	return 0, fmt.Errorf(`delimiter: %q is not one ASCII character; use for instance ";" or "\t"`, text)
}

// Triage says what becomes of malformed records, as the policy of the splitter has it.
type Triage struct {
	Policy Policy
	Logger *slog.Logger
	// Skipped counts records that were skipped; may be nil.
	Skipped func(records, bytes int)

	silent int64 // skipped since the last line of the log
	logged time.Time
}

// logEvery is how often at most skipped records are logged.
const logEvery = 5 * time.Second

// Sort makes the evidence of dead letters, by the index of the message, and counts what was skipped. at says where a record is, for people: FILE:LINE.
func (t *Triage) Sort(bad []*Error, at func(*Error) string) map[int]*deadletter.Failure {
	var broken map[int]*deadletter.Failure
	for _, e := range bad {
		if e.Index < 0 {
			t.skip(e, at)
			continue
		}
		if broken == nil {
			broken = make(map[int]*deadletter.Failure, len(bad))
		}
		text := fmt.Sprintf("%s: %v", at(e), e)
		if e.Size > MaxRaw && errors.Is(e, ErrTooLong) {
			text += fmt.Sprintf("; the payload has the first %d bytes of %d", MaxRaw, e.Size)
		}
		broken[e.Index] = &deadletter.Failure{Reason: deadletter.Malformed, Error: text, Attempts: 1}
	}
	return broken
}

func (t *Triage) skip(e *Error, at func(*Error) string) {
	t.silent++
	if t.Skipped != nil {
		t.Skipped(1, int(e.Size))
	}
	if now := time.Now(); now.Sub(t.logged) >= logEvery {
		t.Logger.Warn("record malformed, skipped", "at", at(e), "error", e.Error(), "records", t.silent)
		t.logged, t.silent = now, 0
	}
}

// Close logs what was skipped and not yet logged.
func (t *Triage) Close() {
	if n := t.silent; n > 0 {
		t.silent = 0
		t.Logger.Warn("records malformed, skipped", "records", n)
	}
}

// Fatal is the error for a record at which reading ends.
func Fatal(at string, err error) error {
	return &source.PermanentError{Err: fmt.Errorf("%s: %w (the records before it were read, none after it); correct it and start again", at, err)}
}

// WarnDelimiter logs once that the fields of a file seem to be separated by something else than the manifest says.
func WarnDelimiter(logger *slog.Logger, name string, delimiter, suspect byte) {
	if suspect == 0 {
		return
	}
	if delimiter == 0 {
		delimiter = ','
	}
	logger.Warn("csv: the first record has one field only, check the delimiter", "file", name, "delimiter", string(rune(delimiter)), "expected setting", fmt.Sprintf("delimiter: %q", string(rune(suspect))))
}
