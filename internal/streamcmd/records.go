package streamcmd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

// recordLine is a record as people and programs read it.
type recordLine struct {
	Job    string `json:"job"`
	Stream string `json:"stream"`
	Seq    uint64 `json:"seq"`
	// ID stays the same when the record is handed over again.
	ID string `json:"id"`
	// Key and Value are always there. Their encodings say what they are, since bytes are not always text.
	Key           string   `json:"key"`
	KeyEncoding   encoding `json:"keyEncoding"`
	Value         string   `json:"value"`
	ValueEncoding encoding `json:"valueEncoding"`
}

// encoding is how bytes stand in a text of JSON.
type encoding string

const (
	encodingText   encoding = "text"   // the bytes are the text, in UTF-8
	encodingBase64 encoding = "base64" // the bytes are not UTF-8
)

func encoded(b []byte) (string, encoding) {
	if utf8.Valid(b) {
		return string(b), encodingText
	}
	return base64.StdEncoding.EncodeToString(b), encodingBase64
}

// jsonLines writes a batch as JSON, a line a record.
func jsonLines(b *stream.Batch) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	for _, r := range b.Records {
		line := recordLine{Job: b.Job.ID, Stream: b.Job.Stream, Seq: r.Seq, ID: b.IdempotencyKey(r)}
		line.Key, line.KeyEncoding = encoded(r.Key)
		line.Value, line.ValueEncoding = encoded(r.Value)
		if err := e.Encode(&line); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// printing keeps the batches of several jobs apart.
var printing sync.Mutex

func printRecords(out io.Writer) func(context.Context, *stream.Batch) error {
	return func(_ context.Context, b *stream.Batch) error {
		lines, err := jsonLines(b)
		if err != nil {
			return err
		}
		printing.Lock()
		defer printing.Unlock()
		if _, err := out.Write(lines); err != nil {
			if err = fmt.Errorf("print: %w", err); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				return err // there may be room later, and what was written in part is written again
			}
			return stream.Halt(err)
		}
		return nil
	}
}

// exitBadRecord is what a command ends with when a record is bad: EX_DATAERR of sysexits.h.
const exitBadRecord = 65

func execCommand(command string, output io.Writer) func(context.Context, *stream.Batch) error {
	return func(ctx context.Context, b *stream.Batch) error {
		lines, err := jsonLines(b)
		if err != nil {
			return err
		}
		shell := []string{"/bin/sh", "-c"}
		if runtime.GOOS == "windows" {
			shell = []string{"cmd", "/c"}
		}
		c := exec.CommandContext(ctx, shell[0], shell[1], command)
		c.WaitDelay = 5 * time.Second // for a child of the command that keeps the pipes open
		c.Stdin = bytes.NewReader(lines)
		c.Env = append(os.Environ(), "LEVADA_JOB="+b.Job.ID, "LEVADA_STREAM="+b.Job.Stream, fmt.Sprintf("LEVADA_FIRST_SEQ=%d", b.Records[0].Seq))
		tail := &commandline.Tail{Max: 2 << 10}
		c.Stdout, c.Stderr = output, io.MultiWriter(output, tail)
		return commandOutcome(ctx, c.Run(), tail)
	}
}

// commandOutcome is what the end of a command means for its batch.
func commandOutcome(ctx context.Context, err error, stderr *commandline.Tail) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	text := cmp.Or(stderr.String(), "it wrote nothing to standard error")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // it ended with 0, and something that it started did not
	case ctx.Err() != nil:
		return fmt.Errorf("--exec was ended: %w", context.Cause(ctx))
	case ok && exit.ExitCode() == exitBadRecord:
		return stream.Skip(fmt.Errorf("--exec ended with exit code %d, the record is bad: %s", exitBadRecord, text))
	case ok && exit.ExitCode() >= 0:
		return fmt.Errorf("--exec ended with exit code %d: %s", exit.ExitCode(), text)
	}
	return fmt.Errorf("--exec: %w: %s", err, text)
}
