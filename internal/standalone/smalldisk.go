package standalone

import (
	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/broker"
)

// warnOfSmallDisk says at the start if the disk of the data directory is so small that writes will wait for room with little pending.
func (r *runner) warnOfSmallDisk(pipelines []*Pipeline) {
	if r.broker == nil {
		return
	}
	buffers := 0
	for _, p := range pipelines {
		buffers += len(p.Inputs())
	}
	have, need := r.broker.Disk(), broker.Needs(buffers)
	if buffers == 0 || have == 0 || have >= need {
		return
	}
	r.log.Warn("disk of the data directory is small: a file of 8 MiB stays as long as one block in it is pending, and writes wait while the disk is nearly full",
		"data", r.cfg.DataDir, "size", humanize.IBytes(have), "needed", humanize.IBytes(need), "buffers", buffers)
}
