package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// poisonText makes 1 line in 10,000 kill its function; one line panics in it and one hangs.
func poisonText(i int) string {
	switch {
	case i%10_000 == 4_321:
		return "crash"
	case i == ledgerLines/2+17:
		return "panic"
	case i == ledgerLines/3+5:
		return "hang"
	}
	return plain(i)
}

func isPoison(i int) bool { return poisonText(i) != plain(i) }

// TestPoison runs a pipeline whose function dies of some messages. The pipeline finishes; exactly those are dead-lettered, with their evidence, and no other.
func TestPoison(t *testing.T) {
	for name, sdkBlocks := range map[string]bool{"blocks": true, "contract": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := newLedger(t, dir, ledgerLines, poisonText)
			text := fmt.Sprintf(manifest, 500, 2, program(t, "poison"), 1_000_000)
			text = strings.Replace(text, "processing-timeout: 20s", "processing-timeout: 1s", 1)
			if !sdkBlocks {
				text = strings.Replace(text, "udf: {container: {command: ["+program(t, "poison")+"]}}", "udf: {container: {command: ["+program(t, "poison")+"], env: [{name: POISON_WITHOUT_BLOCKS, value: \"1\"}]}}", 1)
			}
			file := filepath.Join(dir, "pipeline.yaml")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			data := filepath.Join(dir, "data")
			begun := time.Now()
			if out, err := exec.CommandContext(ctx, program(t, "levada"), "run", file, "--data", data, "--quiet", "--log-format", "text", "--allow-dead-letters").CombinedOutput(); err != nil {
				t.Fatalf("levada ended with %v:\n%s", err, last(out, 4000))
			}
			l.check(t, poisonText, isPoison)
			out, err := exec.CommandContext(ctx, program(t, "levada"), "deadletters", "list", "--data", data, "-o", "json").Output()
			if err != nil {
				t.Fatal(err)
			}
			wanted := 0
			for i := range ledgerLines {
				if isPoison(i) {
					wanted++
				}
			}
			reasons := map[string]int{}
			for line := range strings.Lines(string(out)) {
				var letter struct {
					Name, ID string
					Failure  struct {
						Reason, Stack, Signal    string
						Attempts, ConfirmedAlone int
					}
				}
				if err := json.Unmarshal([]byte(line), &letter); err != nil {
					t.Fatal(err)
				}
				reasons[letter.Failure.Reason]++
				if letter.Failure.ConfirmedAlone < 2 {
					t.Errorf("%s was put aside though it was not alone: %+v", letter.ID, letter.Failure)
				}
				if letter.Failure.Reason != "crash" && !strings.Contains(letter.Failure.Stack, "poison") {
					t.Errorf("%s has no stack: %+v", letter.ID, letter.Failure)
				}
			}
			if reasons["crash"] != wanted-2 || reasons["panic"] != 1 || reasons["hang"] != 1 || len(reasons) != 3 {
				t.Errorf("put aside %v, wanted %d crashes, a panic and a hang", reasons, wanted-2)
			}
			t.Logf("%d lines in %v; put aside %v", ledgerLines, time.Since(begun).Round(time.Millisecond), reasons)
		})
	}
}
