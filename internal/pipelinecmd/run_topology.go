package pipelinecmd

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/standalone"
)

// changeFlags are the flags of levada run about a manifest that was changed while messages are in flight.
type changeFlags struct {
	drainOld bool
	discard  []string
}

func (f *changeFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.drainOld, "drain-old", false, "where the manifest was changed in a way that messages in flight do not allow, first finish them with the stored topology")
	flags.StringSliceVar(&f.discard, "discard", nil, "VERTEX,...: drop for good the messages of these vertices' buffers that do not allow the change of the manifest; all for every such vertex")
}

func (f *changeFlags) apply(cfg *standalone.Config, args []string) {
	cfg.DrainOld, cfg.Discard = f.drainOld, f.discard
	cfg.Command = "levada run " + strings.Join(args, " ")
}
