package command

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy/observe"
)

// tapFlags say which events are shown, and how.
type tapFlags struct {
	at                 adminFlag
	filter             observe.Filter
	path, reason, code string // of the filter, as they were given
	format             string
}

func newTap(name string) *cobra.Command {
	t := tapFlags{}
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Show the calls of a proxy as they begin and end",
		Long: `Show the calls of a proxy as they begin and end, until it is interrupted.

A route that does not exist is an error, and so is an endpoint that no backend can have. A path or an endpoint that the proxy has not seen yet is accepted, with
a note.

A filter for a reason, a status or an endpoint shows ends only: a call that begins has none of these yet. When more happens than can be shown, events are
left out, and a line says how many.`,
		Example: examples(name, "tap --path '/shop.Orders/*'", "tap --code UNAVAILABLE -o json | jq .reason"),
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.run(cmd) },
	}
	f := cmd.Flags()
	t.at.register(f)
	f.StringVar(&t.path, "path", "", "only calls of this `PATH`, as /service/method; a star at its end stands for anything")
	f.StringVar(&t.filter.Route, "route", "", "only calls of this `ROUTE`, as metrics name it")
	f.StringVar(&t.filter.Endpoint, "endpoint", "", "only calls that ended at this `ENDPOINT`")
	f.StringVar(&t.reason, "reason", "", "only calls that ended for this `REASON`, such as CONNECTION_LOST")
	f.StringVar(&t.code, "code", "", "only calls that ended with this `STATUS`, such as UNAVAILABLE or 14")
	commandline.Output(f, &t.format, "text", "json")
	return cmd
}

func (t *tapFlags) run(cmd *cobra.Command) error {
	if err := t.parse(); err != nil {
		return err
	}
	client, err := t.at.client()
	if err != nil {
		return err
	}
	client.Note = func(note string) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), "note: "+printable(note)) }
	out := cmd.OutOrStdout()
	err = client.Tap(cmd.Context(), t.filter, func(line []byte, e *observe.Event) error {
		text := tapLine(e)
		if t.format == "json" {
			text = string(line)
		}
		_, err := io.WriteString(out, text+"\n")
		return err
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the proxy has ended the tap: it has stopped, or this command did not read for a while")
	}
	return err
}

// parse reads the parts of the filter that have a form of their own.
func (t *tapFlags) parse() (err error) {
	if t.filter.Path, err = observe.ParsePath(t.path); err != nil {
		return commandline.Usagef("--path: %w", err)
	}
	if t.filter.Reason, err = observe.ParseReason(t.reason); err != nil {
		return commandline.Usagef("--reason: %w", err)
	}
	if t.filter.Status, err = observe.ParseStatus(t.code); err != nil {
		return commandline.Usagef("--code: %w", err)
	}
	return nil
}

// tapLine is an event for people.
func tapLine(e *observe.Event) string {
	switch e.Kind {
	case observe.EventDropped:
		return fmt.Sprintf("... %s left out: more than could be shown", plural(int(e.Dropped), "event"))
	case observe.EventStarted:
		return printable(fmt.Sprintf("%s  began  %-8s  %s  from %s, route %s", e.Time.Local().Format("15:04:05.000"), e.ID, e.Path, e.Client, e.Route))
	}
	took := time.Duration(e.Seconds * float64(time.Second))
	at := e.Endpoint
	if at == "" {
		at = "no endpoint"
	}
	text := fmt.Sprintf("%s  ended  %-8s  %s  %s %s after %v at %s, messages %d in %d out", e.Time.Add(took).Local().Format("15:04:05.000"), e.ID, e.Path, e.Status, e.Reason,
		took, at, e.Requests, e.Responses)
	if e.Attempts > 1 {
		text += fmt.Sprintf(", %d attempts", e.Attempts)
	}
	if e.TransparentRetries > 0 {
		text += ", sent again"
	}
	if e.Reset {
		text += ", reset"
	}
	return printable(text)
}
