//go:build linux

package standalone_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

const twoHops = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  limits: {bufferMaxLength: 2000}
  vertices:
    - {name: in, source: {file: {path: data.txt}}}
    - {name: mid, udf: {builtin: {name: cat}}}
    - {name: v, sink: {file: {path: out.txt}}}
  edges: [{from: in, to: mid}, {from: mid, to: v}]
`

// TestSmallDiskIsEnoughForASmallBacklog runs 32 MB through pipelines with a small backlog, on disks of the size that the documentation names:
// a disk of 24 MB was full with 1.3 MB pending, since a file of 8 MiB stays while one block in it is pending. On a smaller disk the start warns of it.
func TestSmallDiskIsEnoughForASmallBacklog(t *testing.T) {
	for name, c := range map[string]struct {
		size, manifest string
		warns          bool
	}{
		"one buffer":              {"24m", strings.Replace(pipelineFile("p", "v"), "spec:", "spec:\n  limits: {bufferMaxLength: 2000}", 1), false},
		"two buffers":             {"40m", twoHops, false},
		"two buffers, too little": {"30m", twoHops, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.cfg.DataDir = testserver.SmallDisk(t, c.size)
			var lines []string
			for i := range 80_000 {
				lines = append(lines, fmt.Sprintf("%0400d", i)) // 32 MB
			}
			s.write(t, "data.txt", lines...)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			if err := s.runUntil(ctx, t, c.manifest); err != nil || ctx.Err() != nil {
				t.Fatalf("%v, %v\n%s", err, ctx.Err(), s.logs)
			}
			if got := s.lines(t, "out.txt"); len(got) != len(lines) {
				t.Errorf("%d lines of %d", len(got), len(lines))
			}
			if told := strings.Contains(s.logs.String(), "disk of the data directory is small"); told != c.warns {
				t.Errorf("says that the disk is small: %v\n%s", told, s.logs)
			}
			for _, bad := range []string{"critical write error", "restarting the broker", "no space left"} {
				if strings.Contains(s.logs.String(), bad) {
					t.Errorf("%s", s.logs)
				}
			}
		})
	}
}
