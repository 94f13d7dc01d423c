package ackfloor_test

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/casefile"
	"github.com/levada-io/levada/internal/dataplane/ackfloor"
	"github.com/levada-io/levada/internal/flow"
)

// TestFloors runs the files of testdata. Each line is a command of an owner, and behind -> is what it leads to: the floor that the owner may promise, and what
// it acknowledges. A floor above a message that somebody still holds would lose that message.
//
//	enter A w1 11-20: 12 15    A reads work w1, which covers 11 to 20 and has messages at 12 and 15
//	done A w1: 15              A has finished that message; of a work without messages, done A w1 finishes the work
//	ack 20                     all up to 20 is done, says the store; it is not known before the first ack
//
// An owner is a process and its epoch: a process that is given the input again has another name.
func TestFloors(t *testing.T) { casefile.Run(t, "*.txt", interpret) }

type owner struct {
	lane  ackfloor.Lane
	works map[string]*work
	order []string
}

type work struct {
	w        *ackfloor.Work
	messages []flow.Message
}

func interpret(t *testing.T, text string) string {
	var out strings.Builder
	owners, acked := map[string]*owner{}, uint64(ackfloor.Unlimited)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		command, comment, _ := strings.Cut(line, "#")
		command, _, _ = strings.Cut(command, "->")
		command = strings.TrimRight(command, " ")
		if command == "" {
			fmt.Fprintln(&out, line)
			continue
		}
		result := run(t, owners, &acked, command)
		if result = fmt.Sprintf("%-26s -> %s", command, result); comment != "" {
			result = fmt.Sprintf("%-52s #%s", result, comment)
		}
		fmt.Fprintln(&out, strings.TrimRight(result, " "))
	}
	return out.String()
}

func run(t *testing.T, owners map[string]*owner, acked *uint64, command string) string {
	head, list, _ := strings.Cut(command, ":")
	f := strings.Fields(head)
	if f[0] == "ack" {
		_, err := fmt.Sscan(f[1], acked)
		if err != nil {
			t.Fatal(err)
		}
		var floors []string
		for _, name := range []string{"A", "B", "C"} {
			if o := owners[name]; o != nil {
				floors = append(floors, fmt.Sprintf("%s floor %d", name, o.lane.Floor(*acked)))
			}
		}
		return strings.Join(floors, ", ")
	}
	o := owners[f[1]]
	if o == nil {
		o = &owner{works: map[string]*work{}}
		owners[f[1]] = o
	}
	if f[0] == "enter" {
		enter(t, o, f, list)
	} else {
		done(t, o.works[f[2]], list)
	}
	return advance(o, *acked)
}

func positions(t *testing.T, list string) (all []uint64) {
	for _, p := range strings.Fields(list) {
		var pos uint64
		if _, err := fmt.Sscan(p, &pos); err != nil {
			t.Fatal(err)
		}
		all = append(all, pos)
	}
	return all
}

func enter(t *testing.T, o *owner, f []string, list string) {
	var lo, hi uint64
	if _, err := fmt.Sscanf(f[3], "%d-%d", &lo, &hi); err != nil {
		t.Fatal(err)
	}
	w := &work{}
	for _, p := range positions(t, list) {
		w.messages = append(w.messages, flow.Message{Pos: p})
	}
	w.w = o.lane.Enter(lo, hi, w.messages)
	o.works[f[2]], o.order = w, append(o.order, f[2])
}

func done(t *testing.T, w *work, list string) {
	if len(w.messages) == 0 {
		w.w.Done(0, 0)
	}
	for _, p := range positions(t, list) {
		for i := range w.messages {
			if w.messages[i].Pos == p {
				w.w.Done(i, i+1)
			}
		}
	}
}

func advance(o *owner, acked uint64) string {
	n, from, to := o.lane.Advance()
	result := fmt.Sprintf("floor %d", o.lane.Floor(acked))
	for range n {
		result += ", ack " + o.order[0]
		o.order = o.order[1:]
	}
	if to > from {
		result += fmt.Sprintf(", ack %s %d..%d", o.order[0], from, to-1)
	}
	return result
}
