package forward

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/casefile"
	"github.com/levada-io/levada/internal/dataplane/function"
)

// TestDecisions runs testdata/retry.txt. A line names a retry strategy and an answer, and behind -> is what becomes of the message after its first, second, third
// attempt and so on, until it is not tried again.
func TestDecisions(t *testing.T) {
	casefile.Run(t, "retry.txt", func(t *testing.T, text string) string {
		return casefile.Lines(text, nil, func(command string) string { return decisions(t, command) })
	})
}

// decisions are those about one message, of at most eight attempts.
func decisions(t *testing.T, command string) string {
	s, o, sink, permanent, fallback := RetryStrategy{}, function.Outcome{}, false, false, false
	for _, word := range strings.Fields(command) {
		key, value, _ := strings.Cut(word, "=")
		d, _ := time.ParseDuration(value)
		n, _ := strconv.ParseFloat(value, 64)
		switch key {
		case "interval":
			s.Interval = d
		case "factor":
			s.Factor = n
		case "cap":
			s.Cap = d
		case "steps":
			s.Steps = int(n)
		case "onFailure":
			s.OnFailure = OnFailure(value)
		case "retry":
			o.Verdict = function.Retry
		case "nack":
			o.Verdict = function.Nacked
		case "delay":
			o.Delay = d
		case "max_deliveries":
			o.MaxDeliveries = int(n)
		case "sink":
			sink = true
		case "permanent":
			permanent = true
		case "fallback":
			fallback = true
		default:
			t.Fatalf("%q in %q", word, command)
		}
	}
	var all []string
	for attempt := 1; attempt <= 8; attempt++ {
		text, again := "", false
		if sink {
			text, again = afterSink(s, attempt, permanent, fallback)
		} else {
			text, again = after(o, s, attempt)
		}
		if all = append(all, text); !again {
			return strings.Join(all, " ")
		}
	}
	return strings.Join(all, " ") + " ..."
}

func after(o function.Outcome, s RetryStrategy, attempts int) (text string, again bool) {
	switch becomes, wait := decide(o, s, attempts); becomes.Verdict {
	case o.Verdict:
		return wait.String(), true
	case function.Broken:
		return "dead letter " + string(becomes.Failure.Reason), false
	default:
		return "drop", false
	}
}

func afterSink(s RetryStrategy, attempts int, permanent, fallback bool) (text string, again bool) {
	f := s.afterFailure(attempts, permanent, fallback)
	if f == sinkRetry {
		return s.Delay(attempts).String(), true
	}
	return map[sinkFailure]string{sinkFallback: "fallback sink", sinkDrop: "drop", sinkRefused: "dead letter refused", sinkExhausted: "dead letter retries"}[f], false
}
