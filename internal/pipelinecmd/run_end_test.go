package pipelinecmd

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/standalone"
)

// TestEndOfARunSaysWhatIsInTheBrokersMemory: the last line said that messages were kept which the next restart of the broker loses, and a run whose broker had lost them
// already could end with 0.
func TestEndOfARunSaysWhatIsInTheBrokersMemory(t *testing.T) {
	for name, c := range map[string]struct {
		pipeline standalone.PipelineResult
		err      error
		code     int
		want     []string
	}{
		"kept": {standalone.PipelineResult{Buffered: 2500, InMemory: 2000}, nil, 143, []string{"kept: 2,500 in buffers (2,000 of them in the memory of the broker"}},
		"lost": {standalone.PipelineResult{Lost: 20}, nil, 143, []string{"lost: 20 that were in the memory of the broker"}},
		"lost, with an error": {standalone.PipelineResult{Buffered: 1, Lost: 20}, errors.New("stream is missing"), 1,
			[]string{"kept: 1 in buffers;", "lost: 20 that were"}},
	} {
		t.Run(name, func(t *testing.T) {
			end := &runEnd{result: &standalone.Result{Started: true, Pipelines: []standalone.PipelineResult{c.pipeline}}, err: c.err, broker: true, cause: commandline.SignalError{Signal: syscall.SIGTERM}}
			if code := end.exitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			line := strings.Join(end.lines(), "\n")
			for _, want := range c.want {
				if !strings.Contains(line, want) {
					t.Errorf("no %q in %q", want, line)
				}
			}
			if strings.Contains(line, "nothing is left") {
				t.Errorf("%q", line)
			}
		})
	}
}
