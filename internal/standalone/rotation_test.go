package standalone_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A followed file is rotated in both ways, while it is read and while nobody reads it.
func TestRotatedInputGivesEveryLineOnce(t *testing.T) {
	for kind, manifest := range map[string]string{"Pipeline": pipelineFile("p", "out"), "MonoVertex": monoFile("m")} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			manifest := strings.Replace(manifest, "{path: data.txt}", "{path: data.txt, follow: true}", 1)
			path, out := filepath.Join(s.dir, "data.txt"), filepath.Join(s.dir, "out.txt")
			var want []string
			write := func(lines int) {
				t.Helper()
				f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = f.Close() }()
				for range lines {
					line := fmt.Sprintf("line %06d", len(want))
					want = append(want, line)
					if _, err := fmt.Fprintln(f, line); err != nil {
						t.Fatal(err)
					}
				}
			}
			arrived := func() {
				t.Helper()
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					b, _ := os.ReadFile(out)
					got := strings.Fields(strings.ReplaceAll(string(b), "line ", "line_"))
					if len(got) >= len(want) {
						for i := range got {
							got[i] = strings.Replace(got[i], "_", " ", 1)
						}
						slices.Sort(got)
						if !slices.Equal(got, want) {
							t.Fatalf("%d lines, want %d\n%s", len(got), len(want), s.logs)
						}
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%d lines of %d\n%s", len(got), len(want), s.logs)
					}
				}
			}
			running := func(do func()) {
				t.Helper()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.runUntil(ctx, t, manifest) }()
				defer func() {
					cancel()
					if err := <-ended; err != nil {
						t.Errorf("%v\n%s", err, s.logs)
					}
				}()
				do()
			}
			n := 0
			rename := func() {
				n++
				if err := os.Rename(path, fmt.Sprintf("%s-2026010%d", path, n)); err != nil {
					t.Fatal(err)
				}
			}
			truncate := func() {
				n++
				b, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(fmt.Sprintf("%s-2026010%d", path, n), b, 0o644)
				}
				if err == nil {
					err = os.Truncate(path, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			running(func() {
				write(500)
				arrived()
				write(100)
				rename()
				write(300)
				arrived()
				write(50)
				arrived()
				truncate()
				write(20)
				arrived()
			})
			write(50)
			rename()
			write(200)
			rename()
			write(1000)
			running(arrived)
			write(10)
			truncate()
			write(300)
			running(arrived)
			running(func() { write(5); arrived() })
		})
	}
}
