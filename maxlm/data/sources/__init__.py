"""Sources of text: files of many formats, data sets and samples, all read as documents."""
